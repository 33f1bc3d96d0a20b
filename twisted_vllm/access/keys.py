"""Virtual keys in memory, by the SHA-256 of the key: who presents a credential, decided without a database."""
