"""Log lines and audit lines: their fields, their masking, the files they go to."""
