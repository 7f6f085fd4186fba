"""The convergence theory as functions: what ν, α, β, τ, batches and participation do to a run, in numbers.

    constants.py     the assumptions as a record, q, S_j, R_ν
    bounds.py        L_F(ν), bias and variance of the estimators, γ_F(ν): equations (4) to (10), (15)
    convergence.py   Theorem 8 term by term, admissible β, Corollary 9: equation (11)
    spectrum.py      extreme eigenvalues of Hessians and of their differences, by Lanczos
    estimate.py      L, ρ, B, σ_G, σ_H, γ_G, γ_H measured on a model and data
    advice.py        α and β for each ν with the reasoning, and the table of `nufed theory`

Statements, proofs and equation numbers are in docs/theory.md. They are this project's derivation, which generalizes
Fallah, Mokhtari and Ozdaglar (2020, arXiv 2002.07948) from one inner step to ν; the theorems of Jamali, Saber and
Bae (2025, arXiv 2504.21327) were not available and may have other constants.
"""
