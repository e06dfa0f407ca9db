//! Why parts of a batch exchange means and variances, and not sums of squares: their difference cancels.

use crate::group::Group;
use crate::{Error, sum_of_all};
use batchnorm as bn;
use batchnorm_testing::{Factors, Random, kappa, oracle};

/// Values of each rank.
const VALUES: usize = 10_000;

/// Prints the error of the variance of the joined batch, by the sizes of its mean.
pub(crate) fn run(group: &Group) -> Result<(), Error> {
    let world = &group.world;
    if group.rank() == 0 {
        println!("relative error of var, {VALUES} values of f32 per rank");
        println!("    |mean|/std   mean and var      Σx, Σx² in f64    Σx, Σx² in f32");
    }
    for exponent in 0..=6 {
        let mean = 10f64.powi(exponent);
        // Below the κ that bounds are stated for.
        let values = |rank| -> Vec<f32> {
            let mut random = Random(rank as u64);
            (0..VALUES).map(|_| (0.99 * mean + 0.2 * rank as f64 + random.normal()) as f32).collect()
        };
        let (x, shape) = (values(group.rank()), bn::Shape::nc(VALUES, 1)?);
        let mut own = bn::Statistics::new(1);
        bn::BatchNorm::new(shape).statistics(&x, &mut own)?;
        let merged = group.merge(&own)?;

        let wide = x.iter().map(|&x| f64::from(x)).fold([0.0; 2], |[s, q], x| [s + x, q + x * x]);
        let narrow = x.iter().fold([0.0f32; 2], |[s, q], x| [s + x, q + x * x]);
        let n = (VALUES * group.ranks()) as f64;
        let [s, q] = sum_of_all(world, wide);
        let of_wide = q / n - (s / n).powi(2);
        let [s, q] = sum_of_all(world, narrow);
        let of_narrow = f64::from(q / n as f32 - (s / n as f32).powi(2));

        let joined: Vec<f32> = (0..group.ranks()).flat_map(values).collect();
        let (exact_mean, exact) = oracle::statistics(bn::Shape::nc(joined.len(), 1)?, &joined)[0];
        let errors =
            [merged.var()[0], of_wide, of_narrow].map(|v| ((oracle::Double::from(v) - exact).0 / exact.0).abs());
        if group.rank() == 0 {
            println!(
                "    10^{exponent}         {:9.1e}         {:9.1e}         {:9.1e}",
                errors[0], errors[1], errors[2]
            );
        }
        let bound = 1.25 * Factors::new::<f32>(kappa(exact_mean.0, exact.0)).var;
        if errors[0] > bound {
            return Err(format!("var is off by {:e} of itself; expected at most {bound:e}", errors[0]).into());
        }
    }
    if group.rank() == 0 {
        println!();
    }
    Ok(())
}
