//! Long lists, a page at a time.

use model::center::Page;
use serde::Deserialize;
use utoipa::IntoParams;

/// Most items of one page.
pub const PAGE_MOST: usize = 1000;
/// Items of a page unless asked otherwise.
pub const PAGE_USUAL: usize = 100;

/// Which part of a list is asked for. An argument `Query<Paging>` of its own, beside others: it must not be flattened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct Paging {
    /// `next` of the page before; none: the first page.
    pub after: Option<String>,
    /// Most items, 1 to 1,000 [default: 100].
    pub limit: Option<usize>,
}

impl Paging {
    /// Most items, within bounds.
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(PAGE_USUAL).clamp(1, PAGE_MOST)
    }

    /// The page of a list that is sorted by `key`, whose keys are unique. What is added or goes between two pages
    /// moves nothing.
    pub fn page<T>(&self, sorted: Vec<T>, key: impl Fn(&T) -> String) -> Page<T> {
        let total = sorted.len();
        let from = self.after.as_ref().map_or(0, |after| sorted.partition_point(|item| key(item) <= *after));
        let mut items: Vec<T> = sorted.into_iter().skip(from).take(self.limit() + 1).collect();
        let more = items.len() > self.limit();
        items.truncate(self.limit());
        let next = items.last().filter(|_| more).map(key);
        Page { items, next, total: Some(total as u64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_join_to_the_whole_list() {
        let all: Vec<String> = (0..25).map(|n| format!("{n:02}")).collect();
        let mut seen = Vec::new();
        let mut paging = Paging { after: None, limit: Some(10) };
        loop {
            let page = paging.page(all.clone(), Clone::clone);
            assert_eq!(page.total, Some(25));
            seen.extend(page.items);
            match page.next {
                Some(next) => paging.after = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, all);
        let exact = Paging { after: None, limit: Some(25) }.page(all.clone(), Clone::clone);
        assert_eq!((exact.items.len(), exact.next), (25, None));
        // What `after` names may have gone meanwhile.
        let gone = Paging { after: Some("10x".into()), limit: None }.page(all.clone(), Clone::clone);
        assert_eq!(gone.items.first().map(String::as_str), Some("11"));
        for (asked, given) in [(0, 1), (usize::MAX, PAGE_MOST), (7, 7)] {
            assert_eq!(Paging { after: None, limit: Some(asked) }.limit(), given);
        }
        assert_eq!(Paging::default().page(Vec::<String>::new(), Clone::clone).next, None);
    }
}
