"""What is served: the public endpoint, the operations endpoints, and the sockets under both."""
