"""What tests, benchmarks and the demo share: real servers, repositories, deliveries and records."""
