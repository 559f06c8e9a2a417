"""Results that outlive the process: compiled programs and compiled steps, and the keys that identify them."""
