//! libFuzzer's way into [`shunt_fuzz::request`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shunt_fuzz::request::run(data));
