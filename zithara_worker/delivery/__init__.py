"""Delivers messages: threads, rate limit, circuit breakers, retries. Knows no URL and no table."""
