"""The kernels of one machine: catalogue, ZMQ channels, state machine, host."""
