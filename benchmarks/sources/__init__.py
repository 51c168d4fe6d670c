"""Which of three documents does an answer rest on? Shares of the right one, by several ways to add scores up."""
