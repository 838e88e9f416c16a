//! A whole Wrenn for tests and benchmarks
