"""What is kept between two processes: the identity of a result, compiled programs, compiled steps."""
