"""What evaluators are made of: statistics, distances, tables, provenance."""
