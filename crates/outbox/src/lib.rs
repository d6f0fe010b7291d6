//! Receipts and store-and-forward policy over store ops. Pure.
