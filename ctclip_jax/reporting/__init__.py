"""What a person looks at: plots and a self-contained HTML page."""
