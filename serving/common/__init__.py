"""What both servers use: logs, TLS, and how gRPC and HTTP are served, guarded and ended."""
