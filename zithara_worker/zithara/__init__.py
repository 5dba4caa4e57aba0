"""The Zithara API: sends one request over HTTP, gets access tokens, and decides what an answer means for a message."""
