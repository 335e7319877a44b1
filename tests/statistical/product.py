from dataclasses import dataclass
import numpy as np
from pope_fast.reference import *
from pope_fast.reference import utility as U, intervals as I, diagnostics as D, tails as T, marginal as M, diversity as V
@dataclass
class Reading:
    estimates: dict; intervals: dict; diagnostics: dict; summary: dict
def read(logw,reward,*,unit=None,cluster=None,level=.95):
    logw=np.asarray(logw,float); reward=np.asarray(reward,float)
    u=np.arange(len(logw)) if unit is None else np.asarray(unit)
    est={}
    for n,f in dict(ips=U.ips,snips=U.snips,tips=U.tips,sn_tips=U.sn_tips,cv=U.control_variate,psis=U.psis,baseline_dr=U.baseline_dr).items():
        e=f(logw,reward,u); est[n]=(e.value,e.standard_error)
    iv={"delta":I.delta(U.sn_tips(logw,reward,u),level),"snips delta":I.delta(U.snips(logw,reward,u),level),"worst_case_tail":I.worst_case_tail(logw,reward,u,level=level),"robust":I.mirrored_truncated_t(logw,reward,u,level=level),"certified":I.log_smoothing(logw,reward,u,level=level)}
    from pope_fast.reference.units import unit_means
    a=unit_means(np.exp(logw),u)
    dg=dict(ess=D.effective_sample_size(logw,u),k_hat=T.pareto_k(logw),kl_target_behavior=D.kl_target_behavior(logw,u),log_e_value=float(np.log(max(I.mean_weight_e_value(a),1e-300))),mean_weight=a.mean())
    return Reading(est,{k:tuple(v) for k,v in iv.items()},dg,{})
