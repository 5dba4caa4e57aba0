"""How this process and the fleet of workers are doing: read, judged, and shown over HTTP and to the service manager."""
