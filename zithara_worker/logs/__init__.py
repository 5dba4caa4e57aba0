"""Log lines and audit lines: their fields, what is masked in them, and the files they go to."""
