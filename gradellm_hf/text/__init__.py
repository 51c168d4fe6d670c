"""Between text and tokens: chats, encoding, the text of each token, words and sentences. May import `checks` and `errors`."""
