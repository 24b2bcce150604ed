"""The gRPC contract, the certification sidecar, its client and an embedded model server."""
