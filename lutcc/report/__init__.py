"""What lutcc shows a person: the digits demonstration, its tables and its picture."""
