"""Magento's queue tables and the worker's own: the delivery protocol, and what operators do with its rows."""
