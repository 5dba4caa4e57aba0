"""Is the CRM complete? Compares the shop's own tables with what Zithara accepted, and tells the life of one entity."""
