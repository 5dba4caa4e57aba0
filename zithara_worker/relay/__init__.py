"""Moves messages from RabbitMQ into Magento's own queue tables, for shops that publish there."""
