"""How requests travel: threads, pace, outages. Knows what an outcome means for the next request, not what a URL is."""
