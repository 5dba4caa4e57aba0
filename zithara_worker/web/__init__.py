"""The worker's own HTTP address: metrics, health, and a page to look at. Read only; knows no queue and no delivery."""
