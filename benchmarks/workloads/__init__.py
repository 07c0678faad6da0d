"""What is measured, each workload in a module of its own."""
