//! How far a move is, and what it took, by libvirt's statistics of jobs.
//!
//! `virt`'s own call takes libvirt's array for one of Rust's, and leaks the strings in it.
#![allow(unsafe_code, reason = "libvirt's C API has no sound wrapper for these calls")]

use std::ffi::CStr;
use std::os::raw::{c_int, c_uint};
use std::ptr::null_mut;

use stockade_crds::v1alpha1::MigrationProgress;
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt::sys;

use crate::ports::Arrival;

/// libvirt's statistics of one job.
struct Job {
    kind: c_uint,
    fields: sys::virTypedParameterPtr,
    count: c_int,
}

impl Job {
    fn of(domain: &Domain, flags: c_uint) -> Result<Self, Error> {
        let (mut kind, mut fields, mut count) = (0, null_mut(), 0);
        // SAFETY: the handle is valid for the whole call, and libvirt writes what it allocates to
        // the places given; `drop` frees it.
        let result = unsafe {
            sys::virDomainGetJobStats(domain.as_ptr(), &mut kind, &mut fields, &mut count, flags)
        };
        if result < 0 {
            return Err(Error::last_error());
        }
        Ok(Self { kind: kind.unsigned_abs(), fields, count })
    }

    /// A number by its name; 0 where libvirt has none.
    fn number(&self, name: &CStr) -> i64 {
        let mut value = 0;
        if self.fields.is_null() {
            return 0;
        }
        // SAFETY: the array has so many fields, and the name ends with a NUL.
        unsafe {
            sys::virTypedParamsGetULLong(self.fields, self.count, name.as_ptr(), &mut value);
        }
        i64::try_from(value).unwrap_or(i64::MAX)
    }

    fn progress(&self) -> MigrationProgress {
        let total = self.number(c"data_total");
        let remaining = self.number(c"data_remaining");
        let pages = self.number(c"memory_dirty_rate");
        MigrationProgress {
            percent: percent(total, remaining),
            total_bytes: total,
            processed_bytes: self.number(c"data_processed"),
            remaining_bytes: remaining,
            dirty_bytes_per_second: pages.saturating_mul(self.number(c"memory_page_size")),
            bytes_per_second: self.number(c"memory_bps"),
            elapsed_milliseconds: self.number(c"time_elapsed"),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // SAFETY: allocated by libvirt, freed once; an absent array is nothing to it.
        unsafe { sys::virTypedParamsFree(self.fields, self.count) };
    }
}

/// How much of the memory is over.
fn percent(total: i64, remaining: i64) -> i32 {
    let over = total.saturating_sub(remaining).max(0).saturating_mul(100);
    i32::try_from(over.checked_div(total).unwrap_or(0)).unwrap_or(100)
}

/// How far a move away is; `None`: no job is under way.
pub(super) fn under_way(domain: &Domain) -> Result<Option<MigrationProgress>, Error> {
    let job = Job::of(domain, 0)?;
    let active = matches!(job.kind, sys::VIR_DOMAIN_JOB_BOUNDED | sys::VIR_DOMAIN_JOB_UNBOUNDED);
    Ok(active.then(|| job.progress()))
}

/// What the move took that brought the domain here, all zero if libvirt has forgotten it; `None`:
/// it runs here, and the job that brings it in is not over yet.
pub(super) fn arrival(domain: &Domain) -> Result<Option<Arrival>, Error> {
    let flags = sys::VIR_DOMAIN_JOB_STATS_COMPLETED | sys::VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED;
    // Asked first: a job that ends between the two questions is not taken for a forgotten one.
    let under_way = comes_in(domain)?;
    let job = Job::of(domain, flags)?;
    let progress = job.progress();
    let known = job.kind == sys::VIR_DOMAIN_JOB_COMPLETED && progress.total_bytes > 0;
    if known {
        return Ok(Some(Arrival { progress, downtime_milliseconds: job.number(c"downtime") }));
    }
    Ok((!under_way).then(Arrival::default))
}

/// Whether a job brings the domain in. libvirt's QEMU driver has no figures of such a job while it
/// goes on, and says so by refusing the question (`qemuDomainGetJobStatsInternal`).
fn comes_in(domain: &Domain) -> Result<bool, Error> {
    match Job::of(domain, 0) {
        Ok(job) => Ok(job.kind != sys::VIR_DOMAIN_JOB_NONE),
        Err(error) if error.code().is(ErrorNumber::OperationInvalid) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn a_share_is_of_the_memory_and_never_out_of_bounds() {
        assert_eq!((percent(0, 0), percent(200, 50), percent(200, 0)), (0, 75, 100));
        assert_eq!(percent(100, 120), 0);
    }
}
