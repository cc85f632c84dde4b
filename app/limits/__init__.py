"""How much of the server a request may use: rates, slots, the queue for them, one process or several."""
