//! The sink contract, option schemas and the light sinks.
