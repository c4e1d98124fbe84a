//! End-to-end tests of Coracle against real parts; see `tests/tests/`.
