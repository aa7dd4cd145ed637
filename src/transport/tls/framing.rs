//! Where one TLS record ends and the next begins: a type, a version, a length of two bytes, and so many bytes (RFC 8446,
//! 5.1).
//!
//! OpenSSL is given whole records, as it makes an exception of each of which it finds only a part. This only decides how
//! much it is given at a time: were it wrong, that would cost time and nothing else.

const HEADER: usize = 5;
/// Where the length begins in it.
const LENGTH: usize = 3;

#[derive(Clone, Copy, Default)]
pub(super) struct Framing {
    /// How much of the header was there.
    seen: usize,
    /// What the header says of the length, and then how much of that is left.
    left: usize,
}

impl Framing {
    pub fn is_between_records(self) -> bool {
        self.seen == 0
    }

    /// Goes on to the end of a record that has begun before, or else by as many whole ones as `data` has; by all of it if
    /// none ends there. Returns how far that is.
    pub fn advance(&mut self, data: &[u8]) -> usize {
        let begun_before = !self.is_between_records();
        let mut size = self.advance_by_one(data);
        while !begun_before && self.is_between_records() && size < data.len() {
            let mut next = *self;
            let more = next.advance_by_one(&data[size..]);
            if !next.is_between_records() {
                break;
            }
            *self = next;
            size += more;
        }
        size
    }

    fn advance_by_one(&mut self, data: &[u8]) -> usize {
        let mut at = 0;
        while self.seen < HEADER {
            let Some(&byte) = data.get(at) else { return at };
            if self.seen >= LENGTH {
                self.left = self.left << 8 | usize::from(byte);
            }
            self.seen += 1;
            at += 1;
        }
        let body = self.left.min(data.len() - at);
        self.left -= body;
        if self.left == 0 {
            self.seen = 0;
        }
        at + body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(size: usize) -> Vec<u8> {
        let mut record = vec![23, 3, 3];
        record.extend((size as u16).to_be_bytes());
        record.resize(HEADER + size, b'x');
        record
    }

    #[test]
    fn whole_records_are_taken_together() {
        let data = [record(100), record(0), record(300), record(70)[..20].to_vec()].concat();
        let mut framing = Framing::default();
        assert_eq!(framing.advance(&data), 105 + 5 + 305);
        assert!(framing.is_between_records());
        // Of what is not whole there is no more.
        assert_eq!(framing.advance(&data[415..]), 20);
        assert!(!framing.is_between_records());
        assert_eq!(framing.advance(&[&record(70)[20..], &record(1)].concat()), 55);
        assert!(framing.is_between_records());
    }

    #[test]
    fn records_end_where_they_end_however_they_are_cut() {
        let data = [record(0), record(1), record(300), record(16_401), record(65_535)].concat();
        for cut in [1, 2, 3, 4, 5, 6, 7, 100, 16_406, 20_000] {
            let (mut framing, mut ends, mut at) = (Framing::default(), Vec::new(), 0);
            while at < data.len() {
                at += framing.advance(&data[at..data.len().min(at + cut)]);
                ends.extend(framing.is_between_records().then_some(at));
            }
            let all = [5, 11, 316, 16_722, 82_262];
            assert_eq!(ends.last(), Some(&data.len()), "cut into {cut}");
            assert!(ends.iter().all(|end| all.contains(end)), "cut into {cut}: {ends:?}");
        }
    }
}
