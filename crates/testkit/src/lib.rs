//! Wire client, processes, real servers and faults for the tests.
