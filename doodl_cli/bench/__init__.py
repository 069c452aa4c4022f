"""What makes the comparison of methods: suites, budgets, measurements, statistics and pages."""
