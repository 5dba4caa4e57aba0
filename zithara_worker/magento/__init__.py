"""What knows Magento's tables and files, and the worker's own tables beside them. Knows no HTTP and no Zithara API."""
