"""Files of any make as rows: tables, archives, the dialects of CSV."""
