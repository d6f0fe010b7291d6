//! MQTT client: the edge's uplink.
