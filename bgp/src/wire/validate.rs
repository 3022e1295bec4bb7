//! Checking attributes one by one (RFC 7606 sections 3 and 7).
