"""What lasts: files, the table of trials and the cache of completions; knows no meaning."""
