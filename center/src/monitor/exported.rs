//! The centre's own `/metrics`, in the text format of Prometheus.

use std::{fmt::Write, sync::atomic::Ordering::Relaxed};

use super::Monitor;

impl Monitor {
    /// The page.
    pub(super) fn exported(&self) -> String {
        let (reports, refused, lost_samples, (rows, windows), agents, lost) = {
            let seen = self.seen.lock();
            let lost = seen.agents.0.values().filter(|agent| agent.lost()).count();
            (
                seen.reports,
                seen.refused,
                seen.table.refused + seen.edges.refused,
                seen.table.size(),
                seen.agents.0.len(),
                lost,
            )
        };
        let stamp = self.store.stamp();
        let leads = u64::from(self.store.leadership().borrow().leads);
        let kept = self.history.get().and_then(|h| h.day.as_ref()).map(|day| &day.kept);
        let [unwritten, rows_kept, bytes_kept, left_out] =
            kept.map_or([0; 4], |kept| [&kept.lost, &kept.rows, &kept.bytes, &kept.left_out].map(|n| n.load(Relaxed)));
        let broken = self.history.get().is_some_and(|history| history.broken.is_some());
        let mut page = String::new();
        let mut put = |name: &str, kind: &str, help: &str, value: u64| {
            // Writing to a String cannot fail.
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        put("sockmesh_center_reports_total", "counter", "Reports of agents that were counted.", reports);
        let help = "Reports that were wrong, too many, or came twice.";
        put("sockmesh_center_reports_refused_total", "counter", help, refused);
        let help = "Samples and edges for which there was no room: services, instances, callers beyond the limits.";
        put("sockmesh_center_samples_refused_total", "counter", help, lost_samples);
        put("sockmesh_center_agents", "gauge", "Agents heard of within a day.", agents as u64);
        put("sockmesh_center_agents_lost", "gauge", "Of them, those that missed three reports.", lost as u64);
        put("sockmesh_center_rows", "gauge", "Rows of figures: services, instances, callers.", rows as u64);
        put("sockmesh_center_windows", "gauge", "Windows of figures in memory.", windows as u64);
        let help = "Minutes of figures that were not kept because the disk was slow or failed.";
        put("sockmesh_center_minutes_lost_total", "counter", help, unwritten);
        let help = "Rows of minutes that were written into the file of figures.";
        put("sockmesh_center_figures_rows_total", "counter", help, rows_kept);
        let help = "Bytes of these rows, keys and values.";
        put("sockmesh_center_figures_bytes_total", "counter", help, bytes_kept);
        let help = "Rows of minutes that were left out of the file because a minute had more than it takes.";
        put("sockmesh_center_figures_rows_left_out_total", "counter", help, left_out);
        let help = "1 while figures are kept in memory only because their file cannot be opened.";
        put("sockmesh_center_figures_file_broken", "gauge", help, u64::from(broken));
        put("sockmesh_center_services", "gauge", "Services in groups, registered.", self.registry.keys().len() as u64);
        put("sockmesh_center_epoch", "gauge", "Epoch of the store.", stamp.epoch);
        put("sockmesh_center_revision", "gauge", "Revision of the store.", stamp.revision);
        put("sockmesh_center_leads", "gauge", "1 while this centre leads.", leads);
        page
    }
}
