"""HTML reports and tables of metrics."""
