"""What a person looks at: a self-contained HTML page, and the tables of a paper."""
