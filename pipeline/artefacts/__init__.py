"""What stages leave on disk and meet through: places, records, receipts, fingerprints, locks."""
