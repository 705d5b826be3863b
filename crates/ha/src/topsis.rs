//! TOPSIS: a choice by several costs at once. The best is whoever lies nearest to the ideal and farthest from the worst,
//! each cost brought to one scale first (C. L. Hwang, K. Yoon: Multiple Attribute Decision Making, 1981).

/// Differences below this are noise of floating point.
const NOISE: f64 = 1e-9;

/// The row that is best by `weights`; the first of equals. All columns are costs: less is better.
pub fn best<const N: usize>(rows: &[[f64; N]], weights: &[f64; N]) -> Option<usize> {
    let (mut norm, mut low, mut high) = ([0.0; N], [f64::MAX; N], [f64::MIN; N]);
    for row in rows {
        for (k, cost) in row.iter().enumerate() {
            norm[k] += cost * cost;
            low[k] = low[k].min(*cost);
            high[k] = high[k].max(*cost);
        }
    }
    let mut best: Option<(usize, f64)> = None;
    for (i, row) in rows.iter().enumerate() {
        let (mut to_ideal, mut to_worst) = (0.0, 0.0);
        for (k, cost) in row.iter().enumerate() {
            // A column of zeros, or of equals, tells nothing apart.
            if norm[k] > 0.0 && high[k] - low[k] > NOISE * high[k].abs() {
                let scale = weights[k] / norm[k].sqrt();
                to_ideal += ((cost - low[k]) * scale).powi(2);
                to_worst += ((high[k] - cost) * scale).powi(2);
            }
        }
        let (to_ideal, to_worst) = (to_ideal.sqrt(), to_worst.sqrt());
        let sum = to_ideal + to_worst;
        let near = if sum > 0.0 { to_worst / sum } else { 1.0 };
        if best.is_none_or(|(_, b)| near > b + NOISE) {
            best = Some((i, near));
        }
    }
    best.map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_to_the_ideal_is_chosen() {
        assert_eq!(best::<2>(&[], &[1.0, 1.0]), None);
        assert_eq!(best(&[[1.0, 1.0], [1.0, 1.0]], &[1.0, 1.0]), Some(0), "the first of equals");
        assert_eq!(best(&[[2.0, 2.0], [1.0, 1.0]], &[1.0, 1.0]), Some(1));
        assert_eq!(best(&[[0.0, 1.0], [1.0, 0.0]], &[1.0, 9.0]), Some(1), "the heavier cost counts");
        assert_eq!(best(&[[0.0, 1.0], [1.0, 0.0]], &[9.0, 1.0]), Some(0));
        assert_eq!(best(&[[0.0, 3.0], [0.0, 2.0]], &[9.0, 1.0]), Some(1), "what is alike does not count");
    }

    #[test]
    fn the_scale_of_a_cost_does_not_matter() {
        let rows = [[1.0, 40.0], [2.0, 20.0], [3.0, 10.0]];
        let scaled = rows.map(|[a, b]| [a * 1e6, b]);
        assert_eq!(best(&rows, &[2.0, 1.0]), best(&scaled, &[2.0, 1.0]));
    }
}
