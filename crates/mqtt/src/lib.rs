//! MQTT 3.1, 3.1.1 and 5 codec, topic names and filters. No I/O, no clock.
