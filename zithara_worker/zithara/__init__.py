"""What is known of the Zithara API: its URLs, tokens, headers, and what its answers mean for a message."""
