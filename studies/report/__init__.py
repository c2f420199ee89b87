"""The four written reports and the tables of the dissertation."""
