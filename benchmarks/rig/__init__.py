"""What benchmarks stand on: servers, the company's processes, a cheap HTTP client, tables."""
