"""What the shop's files and tables say about its configuration: env.php, config.php, core_config_data."""
