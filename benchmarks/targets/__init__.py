"""What is measured: servers of kernels, and kernels without a server as the floor."""
