//! The threads of the OpenMP runtime that another library of the process uses, entered by the function to which GCC
//! compiles a parallel region. Beside a second pool, which competes for the same cores with OpenMP's spinning threads,
//! a pass takes 2 to 80 times as long.

use batchnorm::{Executor, Threads};
use std::any::Any;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

type Body = extern "C" fn(*mut c_void);

/// The functions of a runtime.
#[derive(Clone, Copy)]
struct Runtime {
    /// `GOMP_parallel(body, data, num_threads, flags)`.
    parallel: unsafe extern "C" fn(Body, *mut c_void, c_uint, c_uint),
    /// `omp_get_thread_num()`.
    thread_num: unsafe extern "C" fn() -> c_int,
    /// The process that loaded it.
    process: u32,
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// Finds the OpenMP runtime that a loaded library is linked to. Returns whether it was found.
pub(crate) fn find(library: &str) -> bool {
    let Ok(library) = CString::new(library) else { return false };
    // SAFETY: the name ends with 0; no library is loaded, only found if it is loaded already. The handle is kept, so
    // that the functions stay valid.
    let handle = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if handle.is_null() {
        return false;
    }
    // SAFETY: the handle is valid, and the names end with 0. A library's symbols are searched in those it is linked to.
    let [parallel, thread_num] =
        [c"GOMP_parallel", c"omp_get_thread_num"].map(|name| unsafe { libc::dlsym(handle, name.as_ptr()) });
    if parallel.is_null() || thread_num.is_null() {
        return false;
    }
    // SAFETY: functions of these names have these types in every runtime of OpenMP 4.
    let runtime = unsafe {
        Runtime {
            parallel: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(Body, *mut c_void, c_uint, c_uint)>(
                parallel,
            ),
            thread_num: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(thread_num),
            process: process::id(),
        }
    };
    RUNTIME.get_or_init(|| runtime);
    true
}

/// So many threads of the runtime. None if there is none, and in a forked child, which does not have the threads that
/// its parent's runtime would wait for.
pub(crate) fn threads(count: usize) -> Option<Threads> {
    let runtime = *RUNTIME.get()?;
    let count = c_uint::try_from(count).ok()?;
    (runtime.process == process::id()).then(|| Threads::Executor(Arc::new(OpenMp { runtime, count })))
}

struct OpenMp {
    runtime: Runtime,
    count: c_uint,
}

/// What `data` of a parallel region points to.
struct Region<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    thread_num: unsafe extern "C" fn() -> c_int,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Runs the task of this thread.
extern "C" fn run(region: *mut c_void) {
    // SAFETY: it is given the region of `parallel_for`, which returns only after all threads have left.
    let region = unsafe { &*region.cast_const().cast::<Region<'_>>() };
    // SAFETY: the function has no conditions.
    let thread = unsafe { (region.thread_num)() };
    let Some(index) = usize::try_from(thread).ok().filter(|&index| index < region.tasks) else { return };
    // No panic may unwind through the runtime's frames: `parallel_for` resumes it after they have returned.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (region.task)(index))) {
        *region.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
    }
}

impl Executor for OpenMp {
    fn threads(&self) -> usize {
        self.count as usize
    }

    /// The runtime may give fewer threads than asked for, such as within a parallel region: the caller then runs what
    /// they skip.
    fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        let region = Region { task, tasks: n, thread_num: self.runtime.thread_num, panic: Mutex::new(None) };
        let data = (&raw const region).cast_mut().cast();
        // SAFETY: `find` has found these functions; `run` is called with the region only, while it lives.
        unsafe { (self.runtime.parallel)(run, data, c_uint::try_from(n).unwrap_or(self.count), 0) };
        if let Some(panic) = region.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }
}
